"""Reading of images, and reading and writing of videos."""
