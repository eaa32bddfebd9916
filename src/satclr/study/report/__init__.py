"""The study as one page: reports/<profile>/report.html, self-contained, offline, printable."""
