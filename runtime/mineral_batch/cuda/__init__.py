"""What the GPU engines share: device, buffers, libraries, error words."""
