"""What both scripts share about running: options, device, the epoch loop, evaluation, files."""
