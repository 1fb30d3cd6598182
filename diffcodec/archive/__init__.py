"""Files of many images: groups that share a stack, an index, appending."""
