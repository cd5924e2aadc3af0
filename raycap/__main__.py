"""``python -m raycap`` is the command ``raycap``."""

from raycap.cli import main

if __name__ == "__main__":
    main()
