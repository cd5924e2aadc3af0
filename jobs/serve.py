"""Serve captions until a signal: ``python jobs/serve.py --config serve_configs/cpu.yaml``."""

from raycap.serve.foreground import main

if __name__ == "__main__":
    main()
