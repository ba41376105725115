"""What is found and how it is shown: measures of sets, findings, pages, curves, contact sheets."""
