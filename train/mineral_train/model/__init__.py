"""The network: backbone, projection, decoder, presets."""
