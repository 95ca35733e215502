"""Pretrained speaker networks, a file each: front end, network as a table, weight reader."""
