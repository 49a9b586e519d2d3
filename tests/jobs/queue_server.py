"""Run the jobs of a queue, in tests that kill the process: python queue_server.py DATA_FOLDER [DATABASE_URL]."""

import sys
import threading
from pathlib import Path

from kinema.jobs import Queue
from kinema.settings import Settings

settings = Settings(data_dir=Path(sys.argv[1]), database_url=(sys.argv[2:] or [None])[0], min_free_gb=0)
with Queue(settings, "queue_work:Work"):
    threading.Event().wait()
