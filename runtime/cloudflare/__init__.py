"""Cloudflare's dialect: Workers AI over REST and through the Worker binding."""
