"""Faces: VGG-Face, textures, the face decoder and its statistics, refinement."""
