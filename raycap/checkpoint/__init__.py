"""Model directories: what a training leaves, and all else begins with."""
