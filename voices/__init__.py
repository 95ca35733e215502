"""Pretrained speaker networks, a file each: front end, network, weight reader."""
