"""Object storage: S3, Google Cloud Storage, Azure and web servers, by URL; models by URL."""
