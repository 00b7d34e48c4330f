"""Behind the scripts, a folder a stage: a raw catalogue flows in at `catalogue`, numbers flow out at `retrieval`."""
