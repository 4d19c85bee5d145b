"""How a stage starts under DVC: as a fork of a server that has imported torch, pandas and MLflow already.

To import them takes most of the time of a short experiment. client.py is the process that DVC sees, server.py what is
forked, once a stage; `ps` shows the forks by that name, `top` by the stage's. What stands beside `python` in a command
(`nice`, `strace`, `-O`) reaches the client alone: REPRONET_FORKSERVER=off lets each stage import for itself.

It may import base. No output depends on it, so it is in no stage's deps.
"""
