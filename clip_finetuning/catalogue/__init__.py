"""What a shop knows of its products: a raw catalogue flows in, rows, the JSON mapping and an audit of it flow out."""
