"""Many videos in one run, which can be interrupted at any time and continued: sources, output folder, runner, summary.

The videos are made by a queue in the output folder (`own_queue`) or by a server (`server_jobs`).
"""
