"""Books."""

from django.db import models


class Book(models.Model):
    title = models.CharField(max_length=200)
    author = models.CharField(max_length=200)
    pages = models.PositiveIntegerField()
    published = models.DateField()

    class Meta:
        ordering = ["id"]
