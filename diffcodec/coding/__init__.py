"""The chain's steps through entropy coders, upward by bits-back and downward to previews."""
