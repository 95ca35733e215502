"""Faces: VGG-Face, segmentation, textures, the face decoder and its statistics, likely faces, portraits."""
