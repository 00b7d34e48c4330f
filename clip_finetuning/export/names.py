"""What forms, number types and kinds of pictures are called: on the command line, in tables and in README.md."""

FORMS = ("open_clip", "transformers", "onnx", "sentence-transformers")
DTYPES = ("fp32", "fp16")
# The largest difference between two components of unit-length embeddings of equal pixels or of equal texts.
LIMITS = {"fp32": 1e-4, "fp16": 5e-3}
INT8_COSINE = 0.9  # the mean cosine that eight bits must keep; what they cost in Recall is printed
PREPARED_COSINE = 0.995  # what preprocess.py must reach on every picture: Pillow's resize is 2 levels off torch's
SAME_COSINE = 0.9999  # a preprocessing that is no worse on any picture of a kind counts as the trained one
