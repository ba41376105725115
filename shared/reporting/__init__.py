"""What is found and how it is shown: networks in whose features sets of images are compared, the distances of such
sets, findings (figures, with all that they depend on), and pages, curves and contact sheets."""
