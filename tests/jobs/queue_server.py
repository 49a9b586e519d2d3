"""Run the jobs of a queue, in tests that kill the process.

python queue_server.py DATA_FOLDER [DATABASE_URL [STORE]]
"""

import sys
import threading
from pathlib import Path

from kinema.jobs import Queue
from kinema.settings import Settings

folder, url, store = (*sys.argv[1:], None, None)[:3]
settings = Settings(data_dir=Path(folder), database_url=url, store=store, min_free_gb=0)
with Queue(settings, "queue_work:Work"):
    threading.Event().wait()
