"""Content credentials (C2PA): keys, signing of video files, and reading of signed files."""
