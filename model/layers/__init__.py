"""Layers of the network: VGG16, DeepFace, NetVLAD and other poolings, local features."""
