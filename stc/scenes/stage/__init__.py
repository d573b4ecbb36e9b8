"""What is seen in a scene: things, their paths, the camera, backgrounds."""
