"""What real files, cameras, templates and hostile hands have broken, kept as small inputs."""
