"""The HTTP interface, around any :class:`raycap.serve.pipeline.Captioner`; it needs no Ray cluster."""
