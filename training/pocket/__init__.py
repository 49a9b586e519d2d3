"""The pocket model (image to video): photographs, networks, training and evaluation."""
