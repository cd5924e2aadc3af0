"""Jobs over whole data sets, on Ray Data."""
