"""What a checkpoint looks like: second moments on calibration text, spectra of every weight, the profile document."""
