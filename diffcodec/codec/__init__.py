"""Images to files and back."""
