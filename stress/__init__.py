"""Long-running checks that nothing is lost: kills at any moment, failing disks, hostile inputs."""
