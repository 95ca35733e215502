"""Faces: VGG-Face, and the face decoder with its textures and statistics."""
