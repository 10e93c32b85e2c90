// VK_EXT_layer_settings for Vulkan headers before 1.3.272, such as Debian 12's: llama.cpp names these types to switch the
// validation layer's advice on, which only its developers do. Given to the compiler with -include.
// Source: the Vulkan specification, VkLayerSettingEXT and VkLayerSettingsCreateInfoEXT.
#pragma once
#ifdef __cplusplus
#include <cstdint>
#include <vector>

namespace vk {
enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char * layer_name;
    const char * setting_name;
    LayerSettingTypeEXT type;
    uint32_t n_values;
    const void * values;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings)
        : n_settings(static_cast<uint32_t>(settings.size())), settings(settings.data()) {}

    int structure_type = 1000496000; // VK_STRUCTURE_TYPE_LAYER_SETTINGS_CREATE_INFO_EXT
    const void * next = nullptr;
    uint32_t n_settings;
    const LayerSettingEXT * settings;
};
} // namespace vk
#endif
