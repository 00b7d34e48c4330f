"""What every stage needs of the machine: a file to write flows in, a whole file or none flows out."""
