"""The HTTP server: BentoML's /generate, the /v1/videos API and the web page, with one shared queue."""
