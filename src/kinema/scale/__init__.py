"""Workers on a Ray cluster (extra `scale`). Only these modules import ray, and only in processes of their own."""
