"""Encoder, refiner and decoder as objects that batch what is asked of them, in one process or behind handles."""
