"""The pocket text-to-image model: program-drawn training scenes, training and evaluation."""
