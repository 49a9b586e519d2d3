"""The pocket video model: photographs, networks, training, evaluation."""
