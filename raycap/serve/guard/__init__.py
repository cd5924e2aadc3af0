"""What stands between the internet and the captioner: keys, rates, sizes, and images by URL."""
