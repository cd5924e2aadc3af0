"""The HTTP interface, around any :class:`raycap.serve.stages.pipeline.Captioner`; it needs no Ray cluster."""
