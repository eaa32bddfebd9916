"""The command line: one command a stage (`stages`), and those that serve people (`people`).

    satclr --help

Only this package reads params.yaml and knows which file goes where (`project`); stages are handed values and paths.
Exit code 1: a run failed; 2: bad input. Heavy imports stand inside the commands, so that help is instant.
"""

from satclr.cli import stages as stages

# The help lists commands in the order of these imports.
# isort: split
from satclr.cli import people as people
from satclr.cli.entry import exit_code as exit_code
from satclr.cli.entry import main as main
