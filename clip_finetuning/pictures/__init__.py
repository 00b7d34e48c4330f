"""One way to see a picture: encoded bytes of any kind flow in, RGB or a plain JPEG flows out, or the reason why not."""
