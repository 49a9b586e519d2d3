"""The faces of the server: BentoML, /v1/videos and the page, all on one queue."""
