"""What real files, cameras, devices and terminals did to the commands, each made small."""
