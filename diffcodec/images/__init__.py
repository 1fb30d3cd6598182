"""Images as people have them: modes, metadata, reading, writing, and the fallback coders."""
