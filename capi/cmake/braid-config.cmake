# Gives the targets braid::braid, the shared library, and braid::braid-static. The files are sought below the prefix that this one
# is installed to, so that it may be moved.
get_filename_component(_braid_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_braid_libraries PATHS "${_braid_prefix}" PATH_SUFFIXES lib "lib/${CMAKE_LIBRARY_ARCHITECTURE}" lib64 NO_DEFAULT_PATH)
find_path(_braid_include braid.h PATHS "${_braid_prefix}/include" NO_DEFAULT_PATH)
find_library(_braid_shared NAMES libbraid.so ${_braid_libraries})
find_library(_braid_static NAMES libbraid.a ${_braid_libraries})

if(_braid_include AND _braid_shared AND NOT TARGET braid::braid)
  add_library(braid::braid SHARED IMPORTED)
  set_target_properties(braid::braid PROPERTIES IMPORTED_LOCATION "${_braid_shared}" IMPORTED_SONAME libbraid.so.0
    INTERFACE_INCLUDE_DIRECTORIES "${_braid_include}")
endif()
if(_braid_include AND _braid_static AND NOT TARGET braid::braid-static)
  add_library(braid::braid-static STATIC IMPORTED)
  set_target_properties(braid::braid-static PROPERTIES IMPORTED_LOCATION "${_braid_static}"
    INTERFACE_INCLUDE_DIRECTORIES "${_braid_include}" INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl")
endif()

if(NOT TARGET braid::braid AND NOT TARGET braid::braid-static)
  set(braid_FOUND FALSE)
  set(braid_NOT_FOUND_MESSAGE "braid.h, libbraid.so or libbraid.a is missing below ${_braid_prefix}")
endif()
unset(_braid_include CACHE)
unset(_braid_shared CACHE)
unset(_braid_static CACHE)
