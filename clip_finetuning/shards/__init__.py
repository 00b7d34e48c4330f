"""What training reads: the JSON mapping flows in, tar shards and the manifest that proves them flow out."""
