"""`python -m rftkit`, and `accelerate launch -m rftkit train …`, which takes modules alone."""

from rftkit.cli import main

main()
