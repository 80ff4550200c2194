"""Lists, creates and retrieves books."""

from django.core.wsgi import get_wsgi_application
from django.urls import include, path
from rest_framework import mixins, routers, serializers, viewsets

from library.models import Book


class BookSerializer(serializers.ModelSerializer):
    class Meta:
        model = Book
        fields = ["id", "title", "author", "pages", "published"]


class Books(mixins.ListModelMixin, mixins.CreateModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    queryset = Book.objects.all()
    serializer_class = BookSerializer


router = routers.SimpleRouter()
router.register("books", Books)
urlpatterns = [path("", include(router.urls))]
application = get_wsgi_application()
